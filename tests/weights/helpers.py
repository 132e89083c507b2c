"""What the tests of weights share."""

OFFLINE = {
    "1": True,
    "true": True,
    "Yes": True,
    "ON": True,
    "y": True,
    "t": True,
    "0": False,
    "False": False,
    "no": False,
    "off": False,
    "n": False,
    "F": False,
    "": False,
}
"""Spellings of TRANSEPT_OFFLINE and HF_HUB_OFFLINE, and whether they forbid the network."""
