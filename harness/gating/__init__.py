"""Two runs -> verdicts: is a candidate worse than its baseline?"""
