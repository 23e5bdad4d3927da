package serve

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/scepkit/scepkit/examples/internal/newfile"
)

// secret returns the challenge, from the flag or from the folder, where the first run puts one.
func secret(o flags) (string, error) {
	if o.challenge != "" {
		return o.challenge, nil
	}
	name := filepath.Join(o.dir, "challenge")
	s := rand.Text()
	if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
		return s, newfile.Write(name, []byte(s+"\n"), 0o600)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(name); err != nil {
		return "", err
	} else if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s can be read by others; chmod 600 %s, and think of a new challenge", name, name)
	}
	if s = strings.TrimSpace(string(text)); s == "" {
		return "", fmt.Errorf("%s is empty; remove it to have a challenge made", name)
	}
	return s, nil
}
