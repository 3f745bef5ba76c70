"""Files, errors, threads, command lines, and the file formats that images come in."""
