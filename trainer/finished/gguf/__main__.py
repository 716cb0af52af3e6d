"""`python -m trainer.finished.gguf MODEL`: write a model folder as GGUF."""

from trainer.finished.gguf.convert import main

if __name__ == "__main__":
    main()
