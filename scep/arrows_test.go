package scep_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// This file holds the layout of the module: what may import what, what is linked into a small
// server, and that packages keep nothing of their own at package level.

const module = "github.com/scepkit/scepkit/"

// A listed is a package as go list prints it.
type listed struct {
	ImportPath string
	Dir        string
	Standard   bool
	GoFiles    []string
	CgoFiles   []string
	Deps       []string
}

// goList runs go list in the root of the module, as if cgo were there or not.
func goList(t *testing.T, cgo bool, args ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Standard,GoFiles,CgoFiles,Deps"}, args...)...)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if cgo {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v\n%s", args, err, stderr.Bytes())
	}
	var pkgs []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var p listed
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) == 0 {
		t.Fatalf("go list %v found no packages", args)
	}
	return pkgs
}

// A source is one package: its files but tests, whatever their build tags.
type source struct {
	path    string // below the module, as "depot/sqlite"
	imports map[string]bool
	files   []*ast.File
	fset    *token.FileSet
}

// sources parses all packages of the module.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	for _, p := range goList(t, true, "./...") {
		s := source{path: strings.TrimPrefix(p.ImportPath, module), imports: map[string]bool{}, fset: token.NewFileSet()}
		entries, err := os.ReadDir(p.Dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
				continue
			}
			if err := s.parse(filepath.Join(p.Dir, e.Name()), nil); err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, s)
	}
	return all
}

func (s *source) parse(name string, src any) error {
	f, err := parser.ParseFile(s.fset, name, src, 0)
	if err != nil {
		return err
	}
	s.files = append(s.files, f)
	for _, spec := range f.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return err
		}
		s.imports[path] = true
	}
	return nil
}

// free reports whether a package may import everything.
func free(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return first == "examples" || first == "hsmtest" || strings.HasSuffix(path, "test")
}

// unit returns the folder that fences a dependency off: the first two elements of a path.
func unit(path string) string {
	parts := strings.SplitN(path, "/", 3)
	return strings.Join(parts[:min(2, len(parts))], "/")
}

func within(path, folder string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }

// arrow says why from must not import to, both below the module; "" if it may.
func arrow(from, to string) string {
	first, _, _ := strings.Cut(from, "/")
	switch {
	case free(from):
		return ""
	case free(to):
		return "what is for tests or examples is imported only there"
	case from == "scep" || within(from, "scep/internal"):
		if !within(to, "scep/internal") {
			return "scep and scep/internal import nothing of ours but scep/internal"
		}
	case first == "scep":
		if to != "scep" && !within(to, "scep/internal") && !within(to, unit(from)) {
			return "what is in scep imports only scep and scep/internal"
		}
	case first == "backend" || first == "depot" || first == "challenge":
		if to != "scep" && to != first && !within(to, first+"/internal") && (!within(to, unit(from)) || from == first) {
			return "backends, depots and challenges import only scep and their parent, and what is internal to it"
		}
	default:
		return "the layout has no such folder"
	}
	return ""
}

// checkArrows returns what is wrong with the imports of packages.
func checkArrows(all []source) (wrong []string) {
	users := map[string]string{} // the folder that imports a foreign module
	for _, s := range all {
		for path := range s.imports {
			first, _, _ := strings.Cut(path, "/")
			to, ours := strings.CutPrefix(path, module)
			switch {
			case ours:
				if why := arrow(s.path, to); why != "" {
					wrong = append(wrong, fmt.Sprintf("%s imports %s: %s", s.path, to, why))
				}
			case free(s.path) || !strings.Contains(first, "."): // the standard library
			case strings.HasPrefix(path, "github.com/smallstep/pkcs7") && s.path != "scep/internal/cms":
				wrong = append(wrong, fmt.Sprintf("%s imports %s, which only scep/internal/cms may", s.path, path))
			case first != "golang.org":
				foreign := strings.Join(strings.Split(path+"//", "/")[:3], "/")
				if other, ok := users[foreign]; ok && other != unit(s.path) {
					wrong = append(wrong, fmt.Sprintf("%s and %s import %s: one dependency, one folder", other, s.path, foreign))
				}
				users[foreign] = unit(s.path)
			}
		}
	}
	return wrong
}

func TestArrows(t *testing.T) {
	all := sources(t)
	if len(all) < 5 {
		t.Fatalf("found %d packages; there must be more", len(all))
	}
	for _, w := range append(checkArrows(all), checkSources(all)...) {
		t.Error(w)
	}
}

// What is not for tests does not link package testing, with its flags.
func TestNoTestingInProduction(t *testing.T) {
	checked := 0
	for _, p := range goList(t, true, "./...") {
		if free(strings.TrimPrefix(p.ImportPath, module)) {
			continue
		}
		checked++
		if slices.Contains(p.Deps, "testing") {
			t.Errorf("%s depends on testing", p.ImportPath)
		}
	}
	if checked < 5 {
		t.Errorf("checked %d packages; there must be more", checked)
	}
}

// A server with the default parts links neither cgo nor drivers for devices and databases.
func TestSmallServer(t *testing.T) {
	parts := []string{module + "scep", module + "depot/sqlite", module + "backend/file", module + "challenge"}
	for _, cgo := range []bool{true, false} {
		deps := goList(t, cgo, append([]string{"-deps"}, parts...)...)
		for _, part := range parts {
			if !slices.ContainsFunc(deps, func(p listed) bool { return p.ImportPath == part && len(p.GoFiles) > 0 }) {
				t.Errorf("cgo %v: %s is not there", cgo, part)
			}
		}
		for _, p := range deps {
			if !p.Standard && len(p.CgoFiles) > 0 || !cgo && p.ImportPath == "runtime/cgo" {
				t.Errorf("cgo %v: %s needs cgo", cgo, p.ImportPath)
			}
			for _, not := range []string{"github.com/miekg/pkcs11", "github.com/ThalesGroup/crypto11", "github.com/ThalesIgnite/crypto11", "github.com/google/go-tpm", "github.com/jackc/pgx"} {
				if within(p.ImportPath, not) {
					t.Errorf("cgo %v: %s is linked", cgo, p.ImportPath)
				}
			}
		}
	}
}

func TestTopLevel(t *testing.T) {
	entries, err := os.ReadDir("..")
	if err != nil || len(entries) < 5 {
		t.Fatal(entries, err)
	}
	want := strings.Fields("scep backend depot challenge examples hsmtest")
	for _, e := range entries {
		switch name := e.Name(); {
		case e.IsDir() && !slices.Contains(want, name) && name != "scep-data" && !strings.HasPrefix(name, "."):
			t.Errorf("folder %s is not in the layout", name)
		case strings.HasSuffix(name, ".go"):
			t.Errorf("%s: there is no package at the root", name)
		}
	}
}

// checkSources returns what packages do that a library must not: init functions, ending the
// process, and variables at package level that are changed.
func checkSources(all []source) (wrong []string) {
	for _, s := range all {
		add := func(pos token.Pos, format string, args ...any) {
			p := s.fset.Position(pos)
			wrong = append(wrong, fmt.Sprintf("%s/%s:%d: %s", s.path, filepath.Base(p.Filename), p.Line, fmt.Sprintf(format, args...)))
		}
		vars := map[string]*ast.ValueSpec{}
		for _, f := range s.files {
			for _, d := range f.Decls {
				switch d := d.(type) {
				case *ast.FuncDecl:
					if d.Name.Name == "init" && d.Recv == nil {
						add(d.Pos(), "func init")
					}
				case *ast.GenDecl:
					for _, spec := range d.Specs {
						v, ok := spec.(*ast.ValueSpec)
						if !ok || d.Tok != token.VAR {
							continue
						}
						if !free(s.path) && mutable(v) && !perProcess(s.path, v.Names[0].Name) {
							add(v.Pos(), "variable %s is made to be changed", v.Names[0].Name)
						}
						for _, name := range v.Names {
							vars[name.Name] = v
						}
					}
				}
			}
		}
		first, _, _ := strings.Cut(s.path, "/")
		for _, f := range s.files {
			ast.Inspect(f, func(n ast.Node) bool {
				var targets []ast.Expr
				switch n := n.(type) {
				case *ast.SelectorExpr:
					if x, ok := n.X.(*ast.Ident); ok && first != "examples" &&
						(x.Name == "os" && n.Sel.Name == "Exit" || x.Name == "log" && (strings.HasPrefix(n.Sel.Name, "Fatal") || strings.HasPrefix(n.Sel.Name, "Panic"))) {
						add(n.Pos(), "%s.%s", x.Name, n.Sel.Name)
					}
				case *ast.AssignStmt:
					if n.Tok != token.DEFINE {
						targets = n.Lhs
					}
				case *ast.IncDecStmt:
					targets = []ast.Expr{n.X}
				}
				for _, to := range targets {
					if name := global(to, vars); name != "" && !free(s.path) && !perProcess(s.path, name) {
						add(n.Pos(), "package variable %s is changed", name)
					}
				}
				return true
			})
		}
	}
	return wrong
}

// perProcess reports whether a variable is the table of loaded PKCS#11 modules: the standard
// makes a module a matter of the process.
func perProcess(path, name string) bool { return path == "backend/pkcs11" && name == "modules" }

// mutable reports whether a variable is of a kind that only makes sense if it changes.
func mutable(v *ast.ValueSpec) (found bool) {
	_, array := v.Type.(*ast.ArrayType)
	found = v.Values == nil && !array // an array may be there to compare with
	look := func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && (x.Name == "atomic" || x.Name == "sync" && !strings.HasPrefix(n.Sel.Name, "OnceValue")) {
				found = true
			}
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.Ident); ok && (f.Name == "make" || f.Name == "new") {
				found = true
			}
		}
		return true
	}
	ast.Inspect(v, look)
	return found
}

// global returns the name of the package variable that an assignment to e changes, or "".
func global(e ast.Expr, vars map[string]*ast.ValueSpec) string {
	for {
		switch x := e.(type) {
		case *ast.IndexExpr:
			e = x.X
		case *ast.SelectorExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		case *ast.Ident:
			spec, ok := vars[x.Name]
			// Scopes within a file are all that is needed here.
			if ok && x.Name != "_" && (x.Obj == nil || x.Obj.Decl == spec) {
				return x.Name
			}
			return ""
		default:
			return ""
		}
	}
}

// plant returns what is wrong with a package of one file.
func plant(t *testing.T, path, src string) []string {
	t.Helper()
	s := source{path: path, imports: map[string]bool{}, fset: token.NewFileSet()}
	if err := s.parse("x.go", "package x; "+src); err != nil {
		t.Fatal(err)
	}
	return append(checkArrows([]source{s}), checkSources([]source{s})...)
}

// The tests above find what they are for.
func TestArrowsFind(t *testing.T) {
	for _, tt := range []struct{ path, src, want string }{
		{"scep", `import _ "` + module + `depot"`, "import nothing of ours"},
		{"scep/internal/cms", `import _ "` + module + `scep"`, "import nothing of ours"},
		{"scep/scepclient", `import _ "` + module + `depot"`, "imports only scep"},
		{"backend/file", `import _ "` + module + `backend/tpm"`, "only scep and their parent"},
		{"backend", `import _ "` + module + `backend/file"`, "only scep and their parent"},
		{"depot/sqlite", `import _ "` + module + `backend/internal/custody"`, "only scep and their parent"},
		{"depot/sqlite", `import _ "` + module + `backend"`, "only scep and their parent"},
		{"challenge/intune", `import _ "` + module + `scep/internal/cms"`, "only scep and their parent"},
		{"depot/sqlite", `import _ "` + module + `depot/depottest"`, "for tests or examples"},
		{"util", `import _ "` + module + `scep"`, "no such folder"},
		{"scep", `import _ "github.com/smallstep/pkcs7"`, "which only scep/internal/cms may"},
		{"backend/file", `import "os"; func init() {}`, "func init"},
		{"depot", `import "os"; func f() { os.Exit(1) }`, "os.Exit"},
		{"scep/sceptest", `import "log"; func f() { log.Fatalf("") }`, "log.Fatalf"},
		{"depot", `import "sync"; var mu sync.Mutex`, "made to be changed"},
		{"depot", `var all = make(map[string]int)`, "made to be changed"},
		{"depot", `var n int`, "made to be changed"},
		{"depot", `var all = map[string]int{}; func f() { all["x"] = 1 }`, "all is changed"},
		{"depot", `var n = 1; func f() { n++ }`, "n is changed"},
	} {
		if wrong := plant(t, tt.path, tt.src); len(wrong) != 1 || !strings.Contains(wrong[0], tt.want) {
			t.Errorf("%s with %s: %q; should say %q", tt.path, tt.src, wrong, tt.want)
		}
	}
	for _, tt := range []struct{ path, src string }{
		{"scep", `import _ "` + module + `scep/internal/cms"`},
		{"backend/file", `import (_ "` + module + `backend"; _ "` + module + `scep")`},
		{"backend", `import _ "` + module + `backend/internal/custody"`},
		{"backend/file", `import _ "` + module + `backend/internal/custody"`},
		{"depot/depottest", `import _ "` + module + `depot/sqlite"`},
		{"examples/quickstart", `import "os"; import _ "` + module + `backend/file"; func f() { os.Exit(1) }`},
		{"depot", `import "errors"; var err = errors.New("x"); func f() { err := 1; err = 2; _ = err }`},
	} {
		if wrong := plant(t, tt.path, tt.src); len(wrong) != 0 {
			t.Errorf("%s with %s: %q", tt.path, tt.src, wrong)
		}
	}
}
