"""archfront: hardware-aware architecture search for hybrid language models."""
