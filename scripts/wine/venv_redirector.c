/* The python.exe that `venv` puts into an environment: starts the interpreter that pyvenv.cfg names as `home`.

   What it does is documented in https://docs.python.org/3/library/venv.html and PEP 405: the interpreter is a child
   process with the same arguments and handles, it finds the environment by the variable __PYVENV_LAUNCHER__, it ends
   when this process is ended, and its exit status becomes that of this process. */
#include <stdio.h>
#include <wchar.h>
#include <windows.h>

#define LONGEST 32768

static wchar_t here[LONGEST], settings[LONGEST], line[LONGEST], home[LONGEST], command[LONGEST];

static int fail(int status, const char *why) {
    fprintf(stderr, "venv: %s\n", why);
    return status;
}

static BOOL WINAPI leave_it_to_the_child(DWORD event) {
    (void)event;
    return TRUE;
}

/* Cut the last part off a path. */
static void to_parent(wchar_t *path) {
    wchar_t *last = wcsrchr(path, L'\\');
    if (last != NULL) *last = L'\0';
}

/* Open pyvenv.cfg beside this program, or one folder above. */
static FILE *open_settings(void) {
    wchar_t folder[LONGEST];
    wcscpy(folder, here);
    for (int level = 0; level < 2; level++) {
        FILE *file;
        to_parent(folder);
        _snwprintf(settings, LONGEST - 1, L"%ls\\pyvenv.cfg", folder);
        file = _wfopen(settings, L"rt, ccs=UTF-8");
        if (file != NULL) return file;
    }
    return NULL;
}

static int read_home(void) {
    FILE *file = open_settings();
    if (file == NULL) return 0;
    while (*home == L'\0' && fgetws(line, LONGEST, file) != NULL) {
        wchar_t *value = wcschr(line, L'=');
        wchar_t key[16];
        if (value == NULL || swscanf(line, L"%15ls", key) != 1 || wcscmp(key, L"home") != 0) continue;
        value += 1 + wcsspn(value + 1, L" \t");
        value[wcscspn(value, L"\r\n")] = L'\0';
        wcscpy(home, value);
    }
    fclose(file);
    return *home != L'\0';
}

/* Return what follows the program's own name on the command line, the blank before it included. */
static const wchar_t *arguments(void) {
    const wchar_t *at = GetCommandLineW();
    if (*at == L'"') {
        at = wcschr(at + 1, L'"');
        return at == NULL ? L"" : at + 1;
    }
    return at + wcscspn(at, L" \t");
}

int wmain(void) {
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION limits = {0};
    STARTUPINFOW start;
    PROCESS_INFORMATION child;
    DWORD status = 1;
    HANDLE job;

    if (GetModuleFileNameW(NULL, here, LONGEST) == 0) return fail(105, "this program's own path is not known");
    if (!read_home()) return fail(106, "no pyvenv.cfg that names a home");
    _snwprintf(command, LONGEST - 1, L"\"%ls\\%ls\"%ls", home, wcsrchr(here, L'\\') + 1, arguments());
    SetEnvironmentVariableW(L"__PYVENV_LAUNCHER__", here);
    SetConsoleCtrlHandler(leave_it_to_the_child, TRUE);

    job = CreateJobObjectW(NULL, NULL);
    limits.BasicLimitInformation.LimitFlags =
        JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE | JOB_OBJECT_LIMIT_SILENT_BREAKAWAY_OK;
    SetInformationJobObject(job, JobObjectExtendedLimitInformation, &limits, sizeof limits);
    GetStartupInfoW(&start);
    if (!CreateProcessW(NULL, command, NULL, NULL, TRUE, CREATE_SUSPENDED, NULL, NULL, &start, &child))
        return fail(101, "the Python that made this environment cannot be started");
    AssignProcessToJobObject(job, child.hProcess);
    ResumeThread(child.hThread);
    WaitForSingleObject(child.hProcess, INFINITE);
    GetExitCodeProcess(child.hProcess, &status);
    return (int)status;
}
