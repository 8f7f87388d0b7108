"""An owner's persona.py and resources.py for a rendered project, which fail on demand."""
