"""The stock for method authors: plain parts, starting values, calibration, grids and refusals, all in `mtpeft.api`."""
