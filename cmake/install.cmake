# What `cmake --install` puts in place for other programs: find_package(bucket_moo CONFIG), and pkg-config files. All of
# it is in the component `cpp`, for builds that have the Python extension too.
include(CMakePackageConfigHelpers)
set(_package ${CMAKE_INSTALL_LIBDIR}/cmake/bucket_moo)

# bucket_moo_install(COMPONENT TARGET [FOLDER PATTERN]): the target, and the headers in the folder that match.
function(bucket_moo_install component target)
  install(TARGETS ${target} EXPORT bucket_moo-${component}
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT cpp
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT cpp NAMELINK_COMPONENT cpp)
  install(EXPORT bucket_moo-${component} NAMESPACE bucket_moo:: DESTINATION ${_package} COMPONENT cpp
    FILE bucket_moo-${component}.cmake)
  if(ARGC GREATER 2)
    install(DIRECTORY ${ARGV2} DESTINATION ${BUCKET_MOO_INSTALL_HEADERS} COMPONENT cpp
      FILES_MATCHING PATTERN ${ARGV3} PATTERN isa EXCLUDE) # one source for several instruction sets, ours alone
  endif()
endfunction()

install(DIRECTORY cpp/include/bucket_moo DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT cpp)
bucket_moo_install(core bucket_moo)
bucket_moo_install(kernels bucket_moo_kernels cpp/kernels *.hpp)
bucket_moo_install(methods bucket_moo_methods cpp/methods *.hpp)
bucket_moo_install(collective bucket_moo_collective cpp/collective *.hpp)
bucket_moo_install(c bucket_moo_c)
install(FILES cpp/c_api/bucket_moo.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT cpp)
if(BUCKET_MOO_HAS_CUDA)
  bucket_moo_install(cuda bucket_moo_cuda cuda *.cuh)
endif()
if(BUCKET_MOO_PYTHON)
  bucket_moo_install(c10d bucket_moo_c10d)
  install(FILES cpp/c10d_collective/point_to_point_transport.hpp cpp/c10d_collective/torch_profiler.hpp
    DESTINATION ${BUCKET_MOO_INSTALL_HEADERS}/c10d_collective COMPONENT cpp)
  install(FILES cmake/torch_libraries.cmake DESTINATION ${_package} COMPONENT cpp)
endif()

string(REGEX MATCH "^[0-9]+\\.[0-9]+" BUCKET_MOO_TORCH_MINOR "${BUCKET_MOO_TORCH_VERSION}")
configure_package_config_file(cmake/bucket_moo-config.cmake.in ${PROJECT_BINARY_DIR}/bucket_moo-config.cmake
  INSTALL_DESTINATION ${_package})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/bucket_moo-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/bucket_moo-config.cmake ${PROJECT_BINARY_DIR}/bucket_moo-config-version.cmake
  DESTINATION ${_package} COMPONENT cpp)

foreach(_name bucket_moo bucket_moo_c)
  configure_file(cmake/${_name}.pc.in ${PROJECT_BINARY_DIR}/${_name}.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/${_name}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT cpp)
endforeach()
