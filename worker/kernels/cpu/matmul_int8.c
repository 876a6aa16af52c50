#include "matmul.h"
void tern_matmul_int8(const Matrix *w, const Call *call) { (void)w, (void)call; }
