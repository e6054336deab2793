"""Speed and memory of token decoding, beside the loop that defines it and beside what no machine undercuts."""
