"""``python -m geomonitor.cli``, and with it ``torchrun -m geomonitor.cli scan ...``."""

from geomonitor.cli import main

if __name__ == "__main__":
    main()
