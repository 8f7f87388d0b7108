"""An owner's persona.py for a rendered project whose models a server has."""
