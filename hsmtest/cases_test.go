package hsmtest_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/scepkit/scepkit/hsmtest"
)

// TestEveryCase runs all conformance tables of package scep with the keys of CA and RA in each
// kind of device, and mixed.
func TestEveryCase(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	binary := filepath.Join(t.TempDir(), "scep.test")
	if out, err := exec.Command("go", "test", "-c", "-o", binary, "../scep").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	type keys struct {
		uri   string // with {n}
		env   []string
		lacks string
	}
	file := func(t *testing.T) keys { return keys{uri: "file:" + t.TempDir() + "/{n}.key"} }
	softHSM := func(t *testing.T) keys {
		token := hsmtest.SoftHSM(t)
		return keys{token.URI("key-{n}"), token.Env(), "OAEP-SHA2 OAEP-MGF"}
	}
	chip := func(t *testing.T) keys {
		uri := fmt.Sprintf("tpm:%s/{n}.tpm?device=unix:%s", t.TempDir(), hsmtest.TPM(t).Listen())
		return keys{uri: uri, lacks: "OAEP-MGF"}
	}
	kinds := map[string]func(*testing.T) keys{"file": file, "SoftHSM": softHSM, "TPM": chip}
	for _, tt := range []struct {
		ca, ra string
	}{
		{"SoftHSM", "SoftHSM"}, {"TPM", "TPM"},
		{"SoftHSM", "file"}, {"file", "SoftHSM"}, {"TPM", "SoftHSM"}, {"SoftHSM", "TPM"}, {"file", "TPM"}, {"TPM", "file"},
	} {
		t.Run(tt.ca+" and "+tt.ra, func(t *testing.T) {
			ca, ra := kinds[tt.ca](t), kinds[tt.ra](t)
			cmd := exec.Command(binary, "-test.run=^TestConformance")
			cmd.Dir = "../scep"
			cmd.Env = append(append(append(os.Environ(), ca.env...), ra.env...),
				"SCEP_TEST_CA_KEYS="+ca.uri, "SCEP_TEST_RA_KEYS="+ra.uri, "SCEP_TEST_LACKS="+ra.lacks)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, tail(out))
			}
		})
	}
}

func tail(b []byte) []byte { return b[max(0, len(b)-10_000):] }
