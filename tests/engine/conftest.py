import sys
from pathlib import Path

# The engine's child process imports the fake runner by name; so do the tests.
sys.path.insert(0, str(Path(__file__).parent))
