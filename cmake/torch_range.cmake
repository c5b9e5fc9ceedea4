# Which releases of torch the extension can be built against. One source of truth: the dependency in pyproject.toml.
file(STRINGS "${CMAKE_CURRENT_LIST_DIR}/../pyproject.toml" _dependency REGEX "^dependencies = ")
if(NOT _dependency MATCHES "\"torch>=([0-9]+\\.[0-9]+),<([0-9]+)\\.([0-9]+)\"")
  message(FATAL_ERROR "pyproject.toml does not say which torch is supported: ${_dependency}")
endif()
set(BUCKET_MOO_TORCH_FIRST ${CMAKE_MATCH_1})
set(_major ${CMAKE_MATCH_2})
math(EXPR _minor "${CMAKE_MATCH_3} - 1") # the bound is excluded
set(BUCKET_MOO_TORCH_LAST ${_major}.${_minor})

# Stops the configuration unless `version`, which `python` imports, is in the range.
function(bucket_moo_check_torch_range version python)
  string(REGEX MATCH "^[0-9]+\\.[0-9]+" minor "${version}")
  if(minor VERSION_LESS BUCKET_MOO_TORCH_FIRST OR minor VERSION_GREATER BUCKET_MOO_TORCH_LAST)
    message(FATAL_ERROR "bucket_moo_ext needs torch ${BUCKET_MOO_TORCH_FIRST} to ${BUCKET_MOO_TORCH_LAST}; "
                        "${python} has ${version}. Install one of these and build again")
  endif()
endfunction()
