"""A data preparation for tests of the supervisor alone; STAND_IN_PREPARE says how it goes."""

import multiprocessing
import os
import subprocess
import sys
import time


def main() -> None:
    mode = os.environ["STAND_IN_PREPARE"]
    print("reading 3 sources", flush=True)
    if mode == "bad":
        print("data.jsonl:7: no `messages`; 1 of 9 rows is bad, data.max_bad_fraction allows 0.01\n", file=sys.stderr)
        sys.exit(64)
    if mode == "crash":
        os.abort()
    if mode == "orphans":  # children whose parent ends before them: whoever adopts them must reap them
        for _ in range(5):
            subprocess.run("sleep 0.2 &", shell=True, check=True)
        time.sleep(1.5)
    if mode == "long":
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print("pool is up", flush=True)
            pool.map(time.sleep, [600, 600])


if __name__ == "__main__":
    main()
