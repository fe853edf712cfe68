"""`make gpu`: the most that a few minutes on an NVIDIA GPU can tell, most valuable first.

- :mod:`.plan` lists the steps, with what each is expected to take;
- :mod:`.schedule` runs them until the time is up;
- :mod:`.jobs` is what they do, in worker processes of their own (:mod:`.worker`) beside which kernels compile;
- :mod:`.facts` keeps each fact the moment it is known, :mod:`.collect` makes results of them.
"""
