# What the libraries have in common that need no Python and can be installed.
include("${CMAKE_CURRENT_LIST_DIR}/warnings.cmake")

# Shared ones are for the torch-free part by itself: the extension has all of it in one library.
set(BUCKET_MOO_LIBRARY_TYPE STATIC)
if(BUILD_SHARED_LIBS AND NOT BUCKET_MOO_PYTHON)
  set(BUCKET_MOO_LIBRARY_TYPE SHARED)
endif()

# Where the headers of these libraries go, a folder each: out of the way of others that are called `kernels`.
set(BUCKET_MOO_INSTALL_HEADERS ${CMAKE_INSTALL_INCLUDEDIR}/bucket_moo_ext)

# bucket_moo_library(TARGET FOLDER): a library whose sources are in cpp/FOLDER; when it is installed its name is that
# without bucket_moo_.
function(bucket_moo_library target folder)
  string(REGEX REPLACE "^bucket_moo_" "" _name ${target})
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_include_directories(${target} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/cpp> $<INSTALL_INTERFACE:${BUCKET_MOO_INSTALL_HEADERS}>)
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${_name} POSITION_INDEPENDENT_CODE ON)
  bucket_moo_strict_warnings(${target})
  get_target_property(_type ${target} TYPE)
  if(_type STREQUAL SHARED_LIBRARY)
    # Of the minor version, as long as that may change interfaces.
    set_target_properties(${target} PROPERTIES
      VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR} INSTALL_RPATH "$ORIGIN")
    bucket_moo_export_only(${target} "${PROJECT_SOURCE_DIR}/cmake/cpp_symbols.map")
  elseif(NOT BUCKET_MOO_PYTHON)
    # What links it exports its own symbols alone. (In the extension _C takes some from libbucket_moo_ext.so.)
    set_target_properties(${target} PROPERTIES CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  endif()
endfunction()

# The library shows the symbols that the version script names, and no other.
function(bucket_moo_export_only target script)
  target_link_options(${target} PRIVATE "LINKER:--version-script=${script}" LINKER:--no-undefined)
  set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS "${script}")
endfunction()
