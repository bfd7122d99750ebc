"""Deep Compression: pruning, weight sharing, and Huffman coding of the codes and the gaps."""
