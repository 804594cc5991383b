"""Format version 2: kind top_k (`top_k`) and kind exact (`exact`); `version.version2` chooses by the specification."""
