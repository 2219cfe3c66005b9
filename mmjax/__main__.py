"""``mmjax doctor`` or ``python -m mmjax doctor``."""

import argparse
import sys

from mmjax.doctor import examine


def main() -> int:
    parser = argparse.ArgumentParser(prog="mmjax")
    commands = parser.add_subparsers(required=True)
    commands.add_parser("doctor", help="what this machine has, and what is missing")
    parser.parse_args()
    report, problems = examine()
    print(report)
    print(f"\n{len(problems)} problems" if problems else "\nAll is well.")
    for problem in problems:
        print(f"  {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
