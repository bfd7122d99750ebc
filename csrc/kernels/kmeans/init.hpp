#pragma once

namespace ff {

// Where k-means takes its first centroids from.
enum class Init { plus_plus, random, linear, density };

}  // namespace ff
