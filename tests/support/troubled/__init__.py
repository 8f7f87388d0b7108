"""An owner's files that make trouble on demand: copied over a rendered project's persona.py and resources.py."""
