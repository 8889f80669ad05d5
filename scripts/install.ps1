# Install klein-setup for this user on Windows, and start it: .\install.ps1 [arguments of klein-setup]
#
# The same as install.sh: no Python is needed, uv is brought where there is none, and nothing is run before its SHA-256
# is the one written below.  KLEIN_SETUP_PACKAGE, KLEIN_SETUP_UV_FROM and the statuses are explained there.
# For Windows PowerShell 5.1, which every Windows 10 and 11 has, and newer ones.

$ErrorActionPreference = "Stop"
$ProgressPreference = "SilentlyContinue" # 5.1 downloads many times slower with its bar
[Net.ServicePointManager]::SecurityProtocol = [Net.ServicePointManager]::SecurityProtocol -bor 3072 # TLS 1.2

function Stop-With($status, $message, $hint) {
    [Console]::Error.WriteLine("error: $message`n  hint: $hint")
    exit $status
}

# Fetch uv into the temporary folder, check it, and return its path.
function Get-Uv($temporary) {
    $machine = if ($env:PROCESSOR_ARCHITEW6432) { $env:PROCESSOR_ARCHITEW6432 } else { $env:PROCESSOR_ARCHITECTURE }
    switch ($machine) {
    # From uv.lock, by `python3 scripts/check_lock.py --write`.
    "AMD64" {
        $address = "https://files.pythonhosted.org/packages/dd/ef/ceeabf3631117f7354787d9fb1ffe943899e59ed4b887a696ed547e47e76/uv-0.13.9-py3-none-win_amd64.whl"
        $sha256 = "6a44b2ed8111d2f60d2b92627c5dccda3f7ed7570b18ce115e569cd68c28246b"
    }
    "ARM64" {
        $address = "https://files.pythonhosted.org/packages/da/d1/d97a5db1f27e077e4d6329223f6b3f719c02c97e4092043f13e628558d05/uv-0.13.9-py3-none-win_arm64.whl"
        $sha256 = "eeb92051c2123b9730c46b04cc843cfa4bc7d7b0aec56df431a2215ef4cb0273"
    }
    default { Stop-With 3 "klein-setup does not run on this computer ($machine)." "It needs 64-bit Windows." }
    }
    if ($env:KLEIN_SETUP_UV_FROM) {
        $address = $env:KLEIN_SETUP_UV_FROM + "/" + $address.Split("/")[-1]
    }
    [Console]::Error.WriteLine("Fetching uv, which is not here, from $address")
    $wheel = Join-Path $temporary "uv.whl"
    try {
        Invoke-WebRequest -UseBasicParsing -Uri $address -OutFile $wheel
    } catch {
        Stop-With 5 "uv could not be fetched from ${address}: $_" "Look at the network, and run this again."
    }
    $found = (Get-FileHash -Algorithm SHA256 -LiteralPath $wheel).Hash.ToLower()
    if ($found -ne $sha256) {
        Stop-With 7 "What came from $address is not the file that is expected: its SHA-256 is $found, not $sha256." `
            "It was cut off or changed on its way, and was not used. Run this again."
    }
    Add-Type -AssemblyName System.IO.Compression.FileSystem
    [IO.Compression.ZipFile]::ExtractToDirectory($wheel, (Join-Path $temporary "files"))
    (Get-ChildItem -Path (Join-Path $temporary "files\uv-*.data\scripts\uv.exe")).FullName
}

$temporary = Join-Path ([IO.Path]::GetTempPath()) ("klein-setup-" + [Guid]::NewGuid())
$made = @() # folders that were not there before
try {
    [void](New-Item -ItemType Directory -Path $temporary)
    $programs = if ($env:XDG_BIN_HOME) { $env:XDG_BIN_HOME } else { Join-Path $HOME ".local\bin" }
    $places = "uv", (Join-Path $programs "uv.exe")
    $found = Get-Command $places -CommandType Application -ErrorAction SilentlyContinue | Select-Object -First 1
    $uv = if ($found) { $found.Source } else { Get-Uv $temporary }
    $bin = & $uv tool dir --bin
    $more = @()
    if (-not $found) {
        $made = (& $uv python dir), (& $uv tool dir), $bin | Where-Object { -not (Test-Path -LiteralPath $_) }
        $more = "--system-certs", "--cache-dir", (Join-Path $temporary "cache"), "--link-mode", "copy"
    }
    $package = if ($env:KLEIN_SETUP_PACKAGE) { $env:KLEIN_SETUP_PACKAGE } else { "klein-setup" }
    & $uv tool install --quiet --upgrade @more $package
    if ($LASTEXITCODE -ne 0) {
        Stop-With 8 "uv could not install klein-setup; it says why above." "Run this again once that is solved."
    }
    $made = @()
    if (-not $found) { # klein-setup uses it, and is updated and removed with it
        Copy-Item -LiteralPath $uv, ($uv -replace "uv.exe$", "uvx.exe") -Destination $bin
        [Console]::Error.WriteLine("Installed: uv, uvx and klein-setup, in $bin")
    }
    if (($env:PATH -split ";") -notcontains $bin) {
        [Console]::Error.WriteLine("$bin is not on PATH; ``uv tool update-shell`` there puts it on it.")
    }
} finally {
    @($temporary) + $made | Where-Object { Test-Path -LiteralPath $_ } | Remove-Item -Recurse -Force
}
& (Join-Path $bin "klein-setup.exe") @args
exit $LASTEXITCODE
