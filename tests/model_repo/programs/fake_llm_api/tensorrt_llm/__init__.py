"""A fake of TensorRT-LLM's LLM API: names and arguments as releases 1.0 to 1.2 have them, and nothing else is taken.

Its model answers with the prompt's own tokens, again and again, one in each step, until ``max_tokens``. What it was
given goes to the file ``asked.jsonl`` in the model's folder.
"""

from tensorrt_llm.fake_llm import LLM
from tensorrt_llm.fake_sampling import SamplingParams

__all__ = ["LLM", "SamplingParams"]
