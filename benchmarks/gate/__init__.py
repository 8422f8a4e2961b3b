"""The pre-deploy gate: `python -m gate`, `make bench`, `aiworker bench`."""
