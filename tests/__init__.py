"""The tests; a package so that another one of this name, which a peer installs, is not found."""
