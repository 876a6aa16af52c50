"""A job that finds two things, and then does as its `shape` says. Torch-free."""

import sys
import time

import msgspec

from scripts.gpu.jobs import Found, Job
from scripts.gpu.results import Measurement

if __name__ == "__main__":
    job = msgspec.json.decode(sys.argv[1], type=Job)
    for value in (1.0, 2.0):
        measurement = Measurement(part="kernels", name="k", value=value, unit="ms")
        print(msgspec.json.encode(Found(measurement=measurement)).decode(), flush=True)
    if job.shape == "hang":
        time.sleep(600)
    if job.shape == "fail":
        sys.exit("CUDA error: an illegal memory access was encountered")
