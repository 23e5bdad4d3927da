// Quickstart is a SCEP server to try. The first run makes a CA and a challenge and keeps them
// in a folder with a database of what it issues; later runs use them again.
package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/examples/internal/serve"
	"github.com/scepkit/scepkit/scep"
)

func main() {
	serve.Main(serve.Program{Name: "quickstart", Dir: "scep-data", Keys: keys})
}

// keys opens the CA in the folder, or makes one, and the RA that a CA needs whose key cannot
// decrypt.
func keys(ctx context.Context, o serve.Options) (*serve.Keys, error) {
	chain, key := filepath.Join(o.Dir, "ca.pem"), filepath.Join(o.Dir, "ca.key")
	var ca *scep.Identity
	_, err := os.Stat(chain)
	if errors.Is(err, fs.ErrNotExist) {
		ca, err = file.CreateCA(chain, key, file.CAOptions{KeyType: o.CAKey})
	} else {
		ca, err = file.Open(chain, key)
	}
	if err != nil {
		return nil, err
	}
	k := &serve.Keys{CA: ca}
	if _, ok := ca.Key.(scep.Unwrapper); !ok {
		k.RA, k.PastRA, err = file.RA(ctx, ca, o.Dir, file.RAOptions{})
	}
	return k, err
}
