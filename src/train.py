"""`python src/train.py …`: trains from a clone, installed or not, from any folder."""

from imago.train import main

if __name__ == "__main__":
    main()
