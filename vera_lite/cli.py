import sys
from vera_lite.training.cli import train
def main():
    train(sys.argv[1:])
if __name__ == "__main__":
    main()
