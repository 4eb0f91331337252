"""The roofline against measurements by others: `python speed_child.py FOLDER`.

Prints what `tools.fit_roofline.validate` finds, as JSON: it is fitted again without what it is asked for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools import fit_roofline

if __name__ == "__main__":
    sys.stdout.write(json.dumps(fit_roofline.validate(Path(sys.argv[1]))))
