"""One file per command: ``run(...)`` takes what `mtpeft.cli` declares under the same names."""
