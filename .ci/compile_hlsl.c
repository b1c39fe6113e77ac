/* Compiles compute shaders in HLSL with Microsoft's compilers, as wgpu does: FXC if built for Windows (it runs under
   Wine), DXC if built for Linux.

   compile_hlsl LIBRARY TARGET < LIST

   TARGET is `cs_5_1` for FXC, `cs_6_0` or more for DXC. LIST has a line for each shader: its entry point, a space, its file. A line is printed for each: `ok FILE`, or
   `failed FILE`, followed by the compiler's words, each line after a tab. The exit code is 0 unless the compiler cannot be
   loaded. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Prints the verdict on a shader. */
static void report(int ok, const char *path, const char *message, size_t n_bytes) {
    printf("%s %s\n", ok ? "ok" : "failed", path);
    for (size_t i = 0; !ok && i < n_bytes && message[i]; i++) {
        if (i == 0 || message[i - 1] == '\n') {
            putchar('\t');
        }
        putchar(message[i]);
        if (message[i] != '\n' && (i + 1 == n_bytes || !message[i + 1])) {
            putchar('\n');
        }
    }
    fflush(stdout);
}

/* The methods of a COM object. Outside Windows, two slots for destructors follow the three of IUnknown. */
typedef struct Object {
    void **methods;
} Object;

#ifdef _WIN32
#include <windows.h>
enum { RELEASE = 2, FIRST = 3 };
#define CALL WINAPI
#else
#include <dlfcn.h>
#include <wchar.h>
enum { RELEASE = 2, FIRST = 5 };
#define CALL
#endif

static void release(Object *object) {
    if (object) {
        ((uint32_t(CALL *)(Object *))object->methods[RELEASE])(object);
    }
}

/* ID3DBlob and IDxcBlob alike. */
static const char *blob_bytes(Object *blob) {
    return ((const char *(CALL *)(Object *))blob->methods[FIRST])(blob);
}

static size_t blob_size(Object *blob) {
    return ((size_t(CALL *)(Object *))blob->methods[FIRST + 1])(blob);
}

#ifdef _WIN32

typedef HRESULT(WINAPI *Compile)(const void *, SIZE_T, const char *, const void *, void *, const char *, const char *, UINT,
                                 UINT, Object **, Object **);
static Compile d3d_compile;

static int load(const char *path) {
    HMODULE library = LoadLibraryA(path);
    d3d_compile = library ? (Compile)(void *)GetProcAddress(library, "D3DCompile") : NULL;
    return d3d_compile != NULL;
}

static void compile(const char *path, const char *entry, const char *target, const char *text, size_t n_bytes) {
    const UINT strict = 1 << 11; /* D3DCOMPILE_ENABLE_STRICTNESS */
    Object *code = NULL, *errors = NULL;
    HRESULT result = d3d_compile(text, n_bytes, NULL, NULL, NULL, entry, target, strict, 0, &code, &errors);
    report(result >= 0, path, errors ? blob_bytes(errors) : "", errors ? blob_size(errors) : 0);
    release(code);
    release(errors);
}

#else

typedef struct {
    uint32_t a;
    uint16_t b, c;
    uint8_t d[8];
} Guid;

static const Guid COMPILER_CLASS = {0x73e22d93, 0xe6ce, 0x47f3, {0xb5, 0xbf, 0xf0, 0x66, 0x4f, 0x39, 0xc1, 0xb0}};
static const Guid COMPILER_3 = {0x228b4687, 0x5a6a, 0x4730, {0x90, 0x0c, 0x97, 0x02, 0xb2, 0x20, 0x3f, 0x54}};
static const Guid RESULT = {0x58346cda, 0xdde7, 0x4497, {0x94, 0x61, 0x6f, 0x87, 0xaf, 0x5e, 0x06, 0x59}};

typedef struct {
    const void *text;
    size_t n_bytes;
    uint32_t encoding;
} Buffer;

static Object *compiler;

static int load(const char *path) {
    void *library = dlopen(path, RTLD_NOW);
    int32_t (*create)(const Guid *, const Guid *, Object **) = NULL;
    if (library) {
        *(void **)&create = dlsym(library, "DxcCreateInstance");
    } else {
        fprintf(stderr, "%s\n", dlerror());
    }
    return create && create(&COMPILER_CLASS, &COMPILER_3, &compiler) >= 0;
}

static void compile(const char *path, const char *entry, const char *target, const char *text, size_t n_bytes) {
    wchar_t wide_entry[128], wide_target[16];
    swprintf(wide_entry, 128, L"%s", entry);
    swprintf(wide_target, 16, L"%s", target);
    const wchar_t *arguments[] = {L"shader.hlsl", L"-E",           wide_entry, L"-T",
                                  wide_target,    L"-HV",          L"2018",    L"-no-warnings",
                                  L"-Ges",        L"-enable-16bit-types"};
    /* The last argument is for devices with f16, which have shader model 6.2 at least. */
    const uint32_t n_arguments = strcmp(target, "cs_6_2") < 0 ? 9 : 10;
    Buffer source = {text, n_bytes, 65001 /* UTF-8 */};
    Object *result = NULL, *errors = NULL;
    int32_t status = -1;
    int32_t made = ((int32_t(*)(Object *, const Buffer *, const wchar_t **, uint32_t, void *, const Guid *, Object **))
                        compiler->methods[FIRST])(compiler, &source, arguments, n_arguments, NULL, &RESULT, &result);
    if (made >= 0 && result) {
        ((int32_t(*)(Object *, int32_t *))result->methods[FIRST])(result, &status);
        ((int32_t(*)(Object *, Object **))result->methods[FIRST + 2])(result, &errors);
    }
    report(status >= 0, path, errors ? blob_bytes(errors) : "", errors ? blob_size(errors) : 0);
    release(errors);
    release(result);
}

#endif

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: compile_hlsl LIBRARY TARGET < LIST\n");
        return 2;
    }
    if (!load(argv[1])) {
        fprintf(stderr, "%s cannot be loaded\n", argv[1]);
        return 1;
    }
    char line[4096], entry[128];
    int at;
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\r\n")] = 0;
        if (sscanf(line, "%127s %n", entry, &at) != 1) {
            continue;
        }
        const char *path = line + at;
        FILE *file = fopen(path, "rb");
        if (!file) {
            report(0, path, "it cannot be opened", 19);
            continue;
        }
        fseek(file, 0, SEEK_END);
        size_t n_bytes = (size_t)ftell(file);
        rewind(file);
        char *text = malloc(n_bytes);
        n_bytes = fread(text, 1, n_bytes, file);
        fclose(file);
        compile(path, entry, argv[2], text, n_bytes);
        free(text);
    }
    return 0;
}
