"""What does `python -m care_sweep.cli` run? The command `care-sweep`."""

from care_sweep.cli import main

if __name__ == "__main__":
    main()
