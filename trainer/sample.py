"""`python -m trainer.sample MODEL --prompt TEXT`: ask an exported model one question."""

from trainer.export.sample import main

if __name__ == "__main__":
    main()
