"""What programs that drive sd-scripts import."""

import sys
from pathlib import Path

# Behind everything else: the program that imports this may have folders of the same names.
sys.path.append(str(Path(__file__).resolve().parents[2]))
