"""What can be on the demo's table: every colour and shape there is, and which of them are held out from training."""

from __future__ import annotations

from pipeline.demo.tabletop import Solid

COLOURS = {
    "red": (208, 50, 42), "green": (48, 150, 70), "blue": (46, 100, 200),
    "yellow": (226, 190, 40), "purple": (130, 66, 170), "orange": (232, 124, 36),
}  # fmt: skip
SHAPES = {
    "cube": {"width_m": 0.045, "length_m": 0.045, "height_m": 0.045},
    "disc": {"width_m": 0.09, "length_m": 0.09, "height_m": 0.014, "is_round": True},
    "can": {"width_m": 0.05, "length_m": 0.05, "height_m": 0.07, "is_round": True},
    "block": {"width_m": 0.038, "length_m": 0.085, "height_m": 0.03},
}
# No training episode shows one of these.
HELD_OUT = frozenset({"green cube", "yellow disc", "red can", "blue block", "purple cube", "orange can"})


def solid(name: str) -> Solid:
    """The object that a task calls "red cube": any colour and shape that there are."""
    colour, shape = name.split()
    return Solid(name, COLOURS[colour], **SHAPES[shape])
