"""The parts of `tools/experiment.py`; read `definition`, `planning`, `working`, then `outcome`."""
