// The accumulators of wgmma as asm names and writes them: N of them are %0 … %(N − 1), the elements of an
// array.
#pragma once

#define SPINFER_WGMMA_NAMES_32                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"

#define SPINFER_WGMMA_NAMES_40 \
  SPINFER_WGMMA_NAMES_32       \
  ", %32, %33, %34, %35, %36, %37, %38, %39"

#define SPINFER_WGMMA_NAMES_48 \
  SPINFER_WGMMA_NAMES_32       \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"

#define SPINFER_WGMMA_NAMES_64                                                         \
  SPINFER_WGMMA_NAMES_32                                                               \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define SPINFER_WGMMA_NAMES_128                                                                  \
  SPINFER_WGMMA_NAMES_64                                                                         \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define SPINFER_WGMMA_SUMS_8(d, i)                                                            \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define SPINFER_WGMMA_SUMS_32(d)                                                       \
  SPINFER_WGMMA_SUMS_8(d, 0), SPINFER_WGMMA_SUMS_8(d, 8), SPINFER_WGMMA_SUMS_8(d, 16), \
      SPINFER_WGMMA_SUMS_8(d, 24)
#define SPINFER_WGMMA_SUMS_40(d) SPINFER_WGMMA_SUMS_32(d), SPINFER_WGMMA_SUMS_8(d, 32)
#define SPINFER_WGMMA_SUMS_48(d) \
  SPINFER_WGMMA_SUMS_32(d), SPINFER_WGMMA_SUMS_8(d, 32), SPINFER_WGMMA_SUMS_8(d, 40)
#define SPINFER_WGMMA_SUMS_64(d)                                                      \
  SPINFER_WGMMA_SUMS_32(d), SPINFER_WGMMA_SUMS_8(d, 32), SPINFER_WGMMA_SUMS_8(d, 40), \
      SPINFER_WGMMA_SUMS_8(d, 48), SPINFER_WGMMA_SUMS_8(d, 56)
#define SPINFER_WGMMA_SUMS_128(d)                                                            \
  SPINFER_WGMMA_SUMS_64(d), SPINFER_WGMMA_SUMS_8(d, 64), SPINFER_WGMMA_SUMS_8(d, 72),        \
      SPINFER_WGMMA_SUMS_8(d, 80), SPINFER_WGMMA_SUMS_8(d, 88), SPINFER_WGMMA_SUMS_8(d, 96), \
      SPINFER_WGMMA_SUMS_8(d, 104), SPINFER_WGMMA_SUMS_8(d, 112), SPINFER_WGMMA_SUMS_8(d, 120)
