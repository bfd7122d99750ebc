# Reads FASTFACTOR_LEVELS; sets `levels`, the levels to build, and flags_<level> for every level.

# The features of x86-64-v2, -v3 and -v4, spelled out because compilers before GCC 11 do not know those names.
set(flags_baseline "")
set(flags_v2 -mcx16 -msahf -mpopcnt -msse3 -mssse3 -msse4.1 -msse4.2)
set(flags_v3 ${flags_v2} -mavx -mavx2 -mbmi -mbmi2 -mf16c -mfma -mlzcnt -mmovbe)
set(flags_v4 ${flags_v3} -mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl)
# Not a level of the psABI: v4 with 8-bit dot products, by which k-means filters centroids, and byte
# permutes, which look up codes (Intel since Ice Lake, AMD since Zen 4).
set(flags_v4_vnni ${flags_v4} -mavx512vnni -mavx512vbmi)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(all_levels v2 v3 v4 v4_vnni)
else()
  set(all_levels baseline)
endif()

# Sets `best` to the best level of this processor, found by the same code that chooses a level at
# import. `best` is empty when cross-compiling or if no level is found.
function(find_best_level)
  set(best "" PARENT_SCOPE)
  if(CMAKE_CROSSCOMPILING)
    return()
  endif()
  try_run(ran compiled "${CMAKE_CURRENT_BINARY_DIR}/supported_levels"
          "${CMAKE_CURRENT_SOURCE_DIR}/cmake/supported_levels.cpp"
          CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${CMAKE_CURRENT_SOURCE_DIR}/csrc"
          RUN_OUTPUT_VARIABLE supported)
  foreach(level IN LISTS supported)
    if(compiled AND ran EQUAL 0 AND level IN_LIST all_levels)
      set(best ${level} PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()

set(levels ${FASTFACTOR_LEVELS})
if(levels STREQUAL "best")
  find_best_level()
  if(best)
    set(levels ${best})
    message(STATUS "fastfactor: building level ${best}, the best that this processor runs. "
                   "All levels: pip install . -C cmake.define.FASTFACTOR_LEVELS=all")
  else()
    set(levels "all")
    message(STATUS "fastfactor: this processor's best level could not be found out.")
  endif()
endif()
if(levels STREQUAL "all")
  set(levels ${all_levels})
  message(STATUS "fastfactor: building all levels: ${levels}")
endif()
foreach(level IN LISTS levels)
  if(NOT level IN_LIST all_levels)
    message(FATAL_ERROR "FASTFACTOR_LEVELS must be best, all, or some of ${all_levels}, got ${FASTFACTOR_LEVELS}")
  endif()
endforeach()
