/* The C interface from C99: two gradients in conflict, their weights and the update, and a reduction of one rank. */
#include <bucket_moo.h>
#include <math.h>
#include <stdio.h>

#define CHECK(call)                                                  \
  do {                                                               \
    if ((call) != BUCKET_MOO_OK) {                                   \
      fprintf(stderr, "%s: %s\n", #call, bucket_moo_last_error());   \
      return 1;                                                      \
    }                                                                \
  } while (0)

int main(void) {
  const float a[3] = {1.0F, 0.0F, 2.0F};
  const float b[3] = {-1.0F, 2.0F, 0.5F};
  const void* rows[2];
  double gramian[4], weights[2];
  float update[3];
  struct bucket_moo_method_options options = {.struct_size = sizeof options};
  struct bucket_moo_solution solution = {.struct_size = sizeof solution};
  struct bucket_moo_call call = {.struct_size = sizeof call};
  struct bucket_moo_reduction reduction = {.struct_size = sizeof reduction};
  struct bucket_moo_method* method = NULL;
  struct bucket_moo_collective* collective = NULL;

  rows[0] = a;
  rows[1] = b;
  if (bucket_moo_abi_version() != BUCKET_MOO_ABI_VERSION) return 1;
  CHECK(bucket_moo_gramian(rows, 2, 3, BUCKET_MOO_FLOAT32, gramian));
  printf("gramian %g %g %g %g\n", gramian[0], gramian[1], gramian[2], gramian[3]);

  options.name = "mgda";
  CHECK(bucket_moo_method_create(&options, &method));
  CHECK(bucket_moo_solve(method, 2, gramian, NULL, weights, &solution));
  CHECK(bucket_moo_combine(rows, 2, 3, BUCKET_MOO_FLOAT32, weights, update));
  printf("weights %.6f %.6f, status %d, active %d\n", weights[0], weights[1], (int)solution.status,
         (int)solution.active);
  printf("update %.6f %.6f %.6f\n", update[0], update[1], update[2]);

  CHECK(bucket_moo_collective_create(NULL, method, NULL, &collective));
  bucket_moo_method_destroy(method);
  call.objective = "alone";
  CHECK(bucket_moo_all_reduce(collective, &call, update, 3, BUCKET_MOO_FLOAT32, &reduction));
  printf("objectives %d: %s, weight %g\n", (int)reduction.objectives, reduction.objective[0], reduction.weights[0]);
  bucket_moo_collective_destroy(collective);

  options.name = "nothing";
  printf("error %d\n", bucket_moo_method_create(&options, &method));
  printf("%s\n", bucket_moo_last_error());
  return 0;
}
