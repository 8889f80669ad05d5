/* python.exe and pythonw.exe: hand everything to the interpreter's DLL, as those of python.org do. */
#include <wchar.h>

__declspec(dllimport) int Py_Main(int count, wchar_t **words);

int wmain(int count, wchar_t **words) { return Py_Main(count, words); }
