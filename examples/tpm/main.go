// Tpm is a SCEP server whose keys belong to a TPM 2.0. The first run has the TPM make a key that
// can only sign, ca.tpm, and another that opens requests, ra-1.tpm; later runs use them again.
// Only this TPM can use the files. What else the server needs is in the same folder, as with
// quickstart.
//
// While the TPM is away the server goes on: devices are told to come back later, and /readyz says
// what is wrong.
package main

import (
	"context"
	"flag"
	"fmt"
	"path/filepath"

	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/backend/tpm"
	"github.com/scepkit/scepkit/examples/internal/serve"
)

func main() {
	var m module
	flag.StringVar(&m.device, "device", "/dev/tpmrm0", "use this TPM `device`, or unix:/PATH, a socket that speaks the commands of a TPM")
	flag.StringVar(&m.ra, "ra", "tpm", "keep the key that opens requests in the `tpm or file`; in a file, in the folder, the TPM has one operation for each certificate and not three")
	serve.Main(serve.Program{Name: "tpm", Dir: "tpm-data", Keys: m.keys})
}

// A module is a TPM, and what is kept in it.
type module struct{ device, ra string }

func (m *module) keys(ctx context.Context, o serve.Options) (*serve.Keys, error) {
	name := func(s string) string { return serve.Escape(filepath.Join(o.Dir, s)) }
	on := "&device=" + serve.Escape(m.device)
	ra := "tpm:" + name("ra-") + "{n}.tpm?chain=" + name("ra-") + "{n}.pem" + on
	switch m.ra {
	case "tpm":
	case "file":
		ra = serve.FileRA(o)
	default:
		return nil, fmt.Errorf("-ra %q: use tpm or file", m.ra)
	}
	return serve.Open(ctx, o, "tpm:"+name("ca.tpm")+"?chain="+name("ca.pem")+on, ra, &tpm.Driver{}, file.Driver{})
}
