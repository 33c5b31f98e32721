"""Segment one photograph: its classes and their overlay.

python examples/quickstart.py examples/street.jpg street_overlay.png
"""

import sys

import isanet_zoo


def main(photo: str, target: str, name: str = "isanet_efficientnet_lite0os8_camvid") -> None:
    """Print the classes of a photograph and write its overlay."""
    predictor = isanet_zoo.Predictor(name, confidence=True)
    for segmentation in predictor.stream(photo):
        for _, title, fraction in segmentation.present(min_fraction=0.01):
            print(f"{fraction:6.1%}  {title}")
        segmentation.overlay().save(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
