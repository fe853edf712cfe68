"""A CUDA GPU whose memory is the host's: `make gpu` and the tests in tests/gpu, rehearsed where there is no GPU.

    python -m tests.host_gpu pytest -m gpu tests/gpu
    python -m tests.host_gpu python -m benchmarks.gpu --no-build

It takes a torch that has CUDA, and the toolkit's headers. Three small libraries stand in for what a GPU would do:

- ``runtime.cpp``, preloaded, is the CUDA runtime: memory comes from the host, copies copy, launches do nothing;
- ``driver.cpp`` is the driver that Triton asks: kernels are compiled as for an H100, loaded, and started for nothing;
- ``operators.cpp`` runs torch's own operators for CUDA on the CPU, on the same memory.

Our kernels in CUDA C++ run in the emulator (tests/cuda_emulator), registered for CUDA. Triton's compute nothing, unless
``TRITON_INTERPRET=1`` has them interpreted (then NumPy has to suit that Triton). So what is found is everything but
numbers of Triton's compiled code and times: what nobody imports, calls or moves rightly, and whoever waits for the
device (``torch.cuda.set_sync_debug_mode``). Graphs are captured and replay nothing: their tests are skipped.
"""
