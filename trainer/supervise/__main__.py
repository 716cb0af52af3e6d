"""`python -m trainer.supervise TRAIN_JSON`: what every backend starts on a node."""

import sys

from trainer.supervise.supervisor import main

if __name__ == "__main__":
    sys.exit(main())
