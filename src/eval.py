"""`python src/eval.py …`: scores a checkpoint from a clone, installed or not, from any folder."""

from imago.eval import main

if __name__ == "__main__":
    main()
