"""Code behind the notebooks: shared files, and one file or package per topic."""
