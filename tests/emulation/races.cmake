# The same tests under the race detector: target `races`, then `ctest -C races -L races`.
add_library(bucket_moo_race_detector STATIC race_detector.cpp)
target_link_libraries(bucket_moo_race_detector PUBLIC bucket_moo_emulation ${CMAKE_DL_LIBS})
set_target_properties(bucket_moo_race_detector PROPERTIES EXCLUDE_FROM_ALL ON)
target_compile_options(bucket_moo_race_detector PRIVATE $<$<NOT:$<CONFIG:Debug>>:-O2>)
bucket_moo_strict_warnings(bucket_moo_race_detector)

# The sanitizer's calls, but not its runtime, which the detector stands in for. Calls to memset() and memcpy() would not
# be seen. Optimised for what compiles fast: reads and writes count, not instructions.
set(_seen -fsanitize=thread -fno-tree-loop-distribute-patterns -g1 -O1
  $<$<CXX_COMPILER_ID:GNU>:--param=tsan-instrument-func-entry-exit=0>)

add_library(bucket_moo_cuda_seen OBJECT EXCLUDE_FROM_ALL ${_kernels})
target_link_libraries(bucket_moo_cuda_seen PUBLIC bucket_moo_emulation)
target_compile_options(bucket_moo_cuda_seen PRIVATE ${_as_cuda} ${_seen})

add_custom_target(races)
# Objects before libraries: of an inline function that both have, the linker takes the first.
function(bucket_moo_race_test test)
  add_executable(races_${test} EXCLUDE_FROM_ALL ${test}.cpp $<TARGET_OBJECTS:bucket_moo_cuda_seen>)
  target_link_libraries(races_${test} PRIVATE bucket_moo_race_detector)
  target_include_directories(races_${test} PRIVATE "${PROJECT_SOURCE_DIR}/tests/cpp")
  target_compile_options(races_${test} PRIVATE ${_as_cuda} ${_seen})
  bucket_moo_strict_warnings(races_${test})
  if(test IN_LIST _with_kernels)
    target_compile_definitions(races_${test} PRIVATE __CUDACC__)
  endif()
  add_dependencies(races races_${test})
  add_test(NAME races_${test} CONFIGURATIONS races COMMAND races_${test})
  set_tests_properties(races_${test} PROPERTIES LABELS races TIMEOUT 300 ENVIRONMENT BUCKET_MOO_TEST_EVERY=5)
endfunction()
foreach(_test ${_tests})
  bucket_moo_race_test(${_test})
endforeach()
list(APPEND _with_kernels test_race_detector)
bucket_moo_race_test(test_race_detector)
