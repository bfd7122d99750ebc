"""Deep Compression: pruning, shared weights, and Huffman codes of both codes and gaps."""
