"""What `make` runs: nothing here knows a method, and nothing imports torch.

`setup` makes the environment; `notebooks` reads which notebooks and parameters there are; `plan`
writes what each depends on, so that Make knows what is stale; `run` executes one, `progress` shows
how far it is and `facts` records it; `report` ends a `make figures`; `refresh` renews the stored
outputs; `gallery` writes the page of all figures.
"""
